# After config/labels.py, for tables of several thousand texts: five epochs to read the texts, then
# four to label them, in twice the time.
# python train.py config/labels.py config/read_first.py --dataset=mine --out_dir=out-mine
read_fraction = 5 / 9
max_epochs = 9

dropout = 0.2
embedding_lr = 0.003
head_lr = 0.0012
norm_lr = 0.0006
decay_fraction = 0.3
question_drop = 0.1
