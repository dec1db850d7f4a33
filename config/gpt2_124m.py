# The size of GPT-2 small, for large corpora and one GPU or many; half a million tokens a step however many share it.
# python prepare.py CORPUS/ --out=data/corpus --tokenizer=gpt2     (English; keep the default tokenizer for Chinese)
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
