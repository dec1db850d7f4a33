# Labels texts, with a model of its own that reads nothing but these texts.
# python prepare_sft.py FILE --question="{text}" --answer="{label}" --out=data/mine
# python train.py config/labels.py --dataset=mine --out_dir=out-mine
dataset = "reviews"
out_dir = "out-labels"
max_epochs = 8
patience = 4

judge_by = "text"
n_layer = 2
n_head = 4
n_embd = 128
dropout = 0.3
learning_rate = 0.003
embedding_lr = 0.003
head_lr = 0.002
norm_lr = 0.002
beta1 = 0.8
batch_size = 32
question_drop = 0.2
question_replace = 0.1
