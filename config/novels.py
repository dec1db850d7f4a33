# A few whole novels on a laptop, for an hour or overnight: 10.6M parameters without embedding
# and head.
# python prepare.py YOUR_NOVELS/ --out=data/novels
dataset = "novels"
out_dir = "out-novels"
max_minutes = 60

n_layer = 6
n_head = 6
n_embd = 384
block_size = 512
dropout = 0.1
batch_size = 8
