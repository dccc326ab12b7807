#!/usr/bin/env python3
"""Makes a tiny Qwen2 model of random weights, with a tokenizer trained on texts of this machine.

usage: make_model.py FOLDER
"""
import glob, json, os, sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
texts = []
for pat in ("/usr/share/common-licenses/*", f"{os.path.dirname(os.__file__)}/[a-m]*.py",
            "/usr/share/perl/5.*/pod/perlfaq*.pod"):
    for f in sorted(glob.glob(pat)):
        if os.path.isfile(f):
            texts.append(open(f, errors="replace").read())
print("training text:", sum(map(len, texts)), "characters")
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
           "<tool_response>", "</tool_response>"]
tok = Tokenizer(models.BPE())
tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tok.decoder = decoders.ByteLevel()
tok.train_from_iterator(texts, trainers.BpeTrainer(
    vocab_size=2048, special_tokens=special[:3], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                               model_max_length=4096, clean_up_tokenization_spaces=False)
fast.add_tokens([t for t in special[3:]], special_tokens=False)
fast.chat_template = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% elif m['content'] %}{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '' }}{% endfor %}{% endif %}"
    "{% if m['tool_calls'] %}{% for c in m['tool_calls'] %}{{ '\n<tool_call>\n' }}{{ c['function'] | tojson }}{{ '\n</tool_call>' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
fast.save_pretrained(out)
vocab = len(fast)  # exact: vLLM pads internally and never samples the padding
assert len(fast) <= vocab, len(fast)
torch.manual_seed(0)
cfg = Qwen2Config(vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                  num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=4096,
                  tie_word_embeddings=False, bos_token_id=None, eos_token_id=fast.eos_token_id,
                  pad_token_id=fast.pad_token_id, initializer_range=0.2, dtype="float32")
m = Qwen2ForCausalLM(cfg)
m = m.to(torch.float32)
m.generation_config.eos_token_id = fast.eos_token_id
m.generation_config.do_sample = True
m.save_pretrained(out)
print("params", sum(p.numel() for p in m.parameters()), "vocab", len(fast), "eos", fast.eos_token_id)
print(fast.apply_chat_template([{"role": "user", "content": "hi there"}], tokenize=False, add_generation_prompt=True))
print(os.listdir(out))
