# GPT-2 small (124M), for a large corpus on one GPU or several. A step has half a million tokens.
# --tokenizer=gpt2 is for English; keep the default tokenizer for Chinese.
# python prepare.py CORPUS/ --out=data/corpus --tokenizer=gpt2
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py
dataset = "corpus"
out_dir = "out-gpt2-124m"
max_iters = 10000
eval_interval = 500
eval_tokens = 10_000_000

n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
tie_embeddings = True
batch_size = 12
gradient_accumulation_steps = 40
warmup_iters = 200
