"""The losses against trl's trainers, on the same model and the batches that trl itself makes."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from trialrun.pretraining._losses import (
    IGNORED,
    answer_logps,
    dpo_loss,
    group_advantages,
    grpo_loss,
    sft_loss,
    token_logps,
)

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdef"]
PAIRS = [
    {"prompt": "a b", "chosen": " c d e", "rejected": " f"},
    {"prompt": "c", "chosen": " a", "rejected": " b b b b"},
]


def _tokenizer():
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def _model(seed):
    torch.manual_seed(seed)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def _settings(folder):
    return {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "bf16": False,
    }


def _logits(model, ids, mask):
    return model(input_ids=ids, attention_mask=mask).logits


def test_chat_loss_is_that_of_trl(tmp_path):
    rows = [{"prompt": "a b", "completion": " c d e"}, {"prompt": "c", "completion": " a"}]
    trainer = SFTTrainer(
        _model(0),
        args=SFTConfig(completion_only_loss=True, **_settings(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    logits = _logits(trainer.model, batch["input_ids"], batch["attention_mask"])
    assert (batch["labels"] == IGNORED).any()
    torch.testing.assert_close(sft_loss(logits, batch["labels"]), theirs)


def test_preference_loss_is_trls_sigmoid_norm(tmp_path):
    trainer = DPOTrainer(
        _model(0),
        ref_model=_model(1),
        args=DPOConfig(loss_type=["sigmoid_norm"], beta=5.0, **_settings(tmp_path)),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = torch.where(batch["completion_mask"].bool(), ids, IGNORED)
    means = [
        answer_logps(_logits(model, ids, mask), labels).chunk(2)
        for model in (trainer.model, trainer.ref_model)
    ]
    mine = dpo_loss(*means[0], *means[1], beta=5.0).loss
    torch.testing.assert_close(mine, theirs)
    weights = list(trainer.model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(mine, weights), torch.autograd.grad(theirs, weights)
    )


@pytest.mark.parametrize(("kind", "mean"), [("grpo", "sequences"), ("bnpo", "tokens")])
def test_policy_loss_is_that_of_trl(tmp_path, kind, mean):
    trainer = GRPOTrainer(
        _model(0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            loss_type=kind,
            beta=0.0,
            epsilon=0.1,
            num_generations=2,
            max_completion_length=4,
            # trl multiplies the KL term by the ratio unless told not to; k3 is meant here.
            use_bias_correction_kl=False,
            **_settings(tmp_path),
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=_tokenizer(),
    )
    # A weight above 0 in the settings would make trl fetch the reference from a hub; its values
    # are handed over below.
    trainer.beta = 0.05
    draw = torch.Generator().manual_seed(0)
    batch = {
        "prompt_ids": torch.tensor([[3, 4], [3, 4]]),
        "prompt_mask": torch.ones(2, 2, dtype=torch.long),
        "completion_ids": torch.tensor([[5, 6, 7], [5, 1, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "advantages": torch.tensor([0.7, -0.9]),
        "num_items_in_batch": torch.tensor(5),
    }
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[:, :2] = IGNORED
    trainer.model.eval()
    found = token_logps(_logits(trainer.model, ids, mask), labels)
    answers = found.logps[:, 1:]
    near = answers.detach() + 0.3 * torch.randn(2, 3, generator=draw)
    far = answers.detach() + 0.3 * torch.randn(2, 3, generator=draw)
    batch |= {"old_per_token_logps": near, "ref_per_token_logps": far}
    theirs = trainer._compute_loss(trainer.model, batch)
    mine = grpo_loss(
        answers, near, far, batch["advantages"], found.trained[:, 1:], clip=0.1, kl=0.05, mean=mean
    )
    torch.testing.assert_close(mine.loss, theirs)
    weights = list(trainer.model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(mine.loss, weights),
        torch.autograd.grad(theirs, weights),
        atol=1e-6,
        rtol=1e-4,
    )


def test_advantages_are_trls_formula():
    rewards = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 5.0]])
    formula = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), formula)
