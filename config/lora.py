# LoRA: freezes a model and trains a small adapter for it. Others may have trained the model.
# python prepare_sft.py FILE --tokenizer=MODEL --out=data/mine
# python train.py config/lora.py --init_from=MODEL --dataset=mine --out_dir=out-mine-lora
dataset = "novella_qa"
out_dir = "out-lora"
max_epochs = 3

lora_rank = 16  # the largest that vLLM loads without a flag
optimizer = "adamw"
learning_rate = 4e-4  # about ten times the rate of training all weights
beta1 = 0.9
decay_fraction = 1.0  # a linear decay
batch_size = 16  # LoRA learns less from batches of more than 32
