# A small model of one short book: half a minute on two cores. quickstart.sh trains it first.
dataset = "novella"
out_dir = "out-pretrain"
max_epochs = 4  # more epochs raised the validation loss at every dropout and rate tried: docs/log

n_layer = 4
n_head = 4
n_embd = 192
block_size = 256
dropout = 0.1
batch_size = 8
