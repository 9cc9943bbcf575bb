"""Make a Llama of random weights, half a megabyte: it says random bytes, and never comes to an end by itself."""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(1)
# A token for each byte, and one to begin with.
vocabulary = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<s>": 256}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
config = LlamaConfig(
    vocab_size=len(vocabulary),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=256,
    eos_token_id=None,
)
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token="<s>",
    chat_template="{% for message in messages %}{{ message.content }}\n{% endfor %}",
).save_pretrained(sys.argv[1])
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
