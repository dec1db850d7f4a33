# Fine-tuning on questions and answers, by default the bundled ones: seven minutes on two cores.
# python train.py config/sft.py --dataset=mine_qa --init_from=out-mine --out_dir=out-mine-sft
dataset = "novella_qa"
init_from = "out-pretrain"
out_dir = "out-sft"
max_epochs = 11
min_iters = 900  # few questions need more epochs: docs/log

learning_rate = 0.006  # 0.0025, 0.005, 0.01 and 0.02 were tried too: docs/log
embedding_lr = 0.004
norm_lr = 0.001
dropout = 0.2
batch_size = 96
question_drop = 0.05
question_replace = 0.05
paraphrases = 6  # 8 was tried too: docs/log
