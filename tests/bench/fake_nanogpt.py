"""A stand-in for a nanoGPT checkout: its command line, its output and its model's interface."""

from __future__ import annotations

from pathlib import Path

TRAIN = """
import os, pickle, sys, time
from ast import literal_eval
settings = {}
for argument in sys.argv[1:]:
    key, value = argument.removeprefix('--').split('=')
    try:
        settings[key] = literal_eval(value)
    except (SyntaxError, ValueError):
        settings[key] = value
kinds = {'learning_rate': float, 'dropout': float, 'min_lr': float, 'max_iters': int,
         'compile': bool, 'device': str, 'block_size': int, 'eval_interval': int}
assert all(type(settings.get(key, kind())) is kind for key, kind in kinds.items()), settings
if settings['compile']:
    sys.exit('no compiler')
folder = os.path.join('data', settings['dataset'])
with open(os.path.join(folder, 'meta.pkl'), 'rb') as file:
    vocab_size = pickle.load(file)['vocab_size']
train_bin = os.path.join(folder, 'train.bin')
assert os.path.getsize(train_bin) > 2 * settings['block_size']
assert settings['device'] == 'cpu' and settings['dtype'] == 'float32'
os.makedirs(settings['out_dir'], exist_ok=True)
for number in range(settings['max_iters'] + 1):
    if number % settings['eval_interval'] == 0:
        print(f'step {number}: train loss 5.0000, val loss 5.0000')
        if number:
            import numpy as np
            import torch
            from model import GPT, GPTConfig
            names = ('n_layer', 'n_head', 'n_embd', 'block_size', 'dropout')
            args = {**{name: settings[name] for name in names}, 'vocab_size': vocab_size}
            args['bias'] = False
            model, tokens = GPT(GPTConfig(**args)), np.fromfile(train_bin, dtype=np.uint16)
            counts = np.bincount(tokens, minlength=vocab_size) + 1.0  # the model knows these
            known = 1.0 if number <= settings['max_iters'] / 2 else 0.5  # it over-fits
            model.lm_head.bias.data = torch.from_numpy(known * np.log(counts)).float()
            saved = {'model': model.state_dict(), 'model_args': args, 'iter_num': number}
            saved['best_val_loss'] = torch.tensor(5.0)
            torch.save(saved, os.path.join(settings['out_dir'], 'ckpt.pt'))
    print(f'iter {number}: loss 5.0000, time 20.00ms, mfu -100.00%')
    while os.path.exists(os.path.join(settings['out_dir'], 'ckpt.pt')):
        time.sleep(0.001)  # until the checkpoint is fetched; a real training is slower
"""
MODEL = """
from dataclasses import dataclass
import torch
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, ids, targets=None):
        logits = self.lm_head(self.embedding(ids))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, 1e-8, weight_decay)

    def generate(self, ids, max_new_tokens, temperature=1.0, top_k=None):
        for _ in range(max_new_tokens):
            logits = self(ids)[0][:, -1] / temperature
            ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return ids
"""

# Real compiling takes ten seconds even for so small a model.
COMPILER = "torch.compile = lambda model: model"
NO_COMPILER = """
def refuse(*_):
    raise RuntimeError('no compiler')

torch.compile = refuse
"""


def write_checkout(folder: Path, compiles: bool = False) -> Path:
    """Writes the files of the checkout, whose model.py replaces torch.compile."""
    folder.mkdir()
    model = MODEL + (COMPILER if compiles else NO_COMPILER)
    for name, source in (("train.py", TRAIN), ("model.py", model), ("configurator.py", "")):
        (folder / name).write_text(source, encoding="utf-8")
    return folder
