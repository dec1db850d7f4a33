# Labels texts, with a model of its own that learns from nothing but these texts.
# python prepare_sft.py FILE --question="{text}" --answer="{label}" --out=data/mine
# python train.py config/labels.py --dataset=mine --out_dir=out-mine
dataset = "reviews"
out_dir = "out-labels"
max_epochs = 6
min_iters = 200  # for tables of a few hundred rows
patience = 5

judge_by = "text"
n_layer = 2  # none, one and two were about equal: docs/log
n_head = 4
n_embd = 128
dropout = 0.3
learning_rate = 0.003  # 0.01 overfits in one epoch
embedding_lr = 0.004
head_lr = 0.002
norm_lr = 0.002
batch_size = 32
question_drop = 0.2
question_replace = 0.1
