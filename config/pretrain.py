# A small model of one short book, in a minute and a half on two cores: the quickstart's first half.
dataset = "novella"
out_dir = "out-pretrain"
max_minutes = 1.5

n_layer = 4
n_head = 4
n_embd = 192
block_size = 256
dropout = 0.1
batch_size = 8
