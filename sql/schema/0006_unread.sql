-- A reply that nobody reads is streaming until it has ended: its server alone knows for how long it waits.
--
-- Earlier versions stored it as disconnected, which a reader who came back undid; what they left so has ended.
alter table messages drop column resumable_until;
