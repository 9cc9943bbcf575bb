"""What a request is and who asks, and the handlers: the top of the house."""
