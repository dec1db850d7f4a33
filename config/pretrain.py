# A small model of one short book, in half a minute on two cores: the quickstart's first half.
dataset = "novella"
out_dir = "out-pretrain"
max_epochs = 4  # more of them, with any dropout and rates that were tried, end with a higher validation loss: docs/log

n_layer = 4
n_head = 4
n_embd = 192
block_size = 256
dropout = 0.1
batch_size = 8
