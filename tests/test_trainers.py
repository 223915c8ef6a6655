"""What trainers really leave on the disk, where they are installed; `formats/test_weights_dir` has it by names.

They run in processes of their own: they warn, and the suite takes warnings for errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import sdconvert
from tests.outputs import contents, same

Runs = Callable[[str, str], Path]

_GPT = """
import torch, transformers
torch.manual_seed(0)
config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=16)
model = transformers.GPT2LMHeadModel(config)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """`runs("transformers", code)` runs the code in a directory, which it gives; skips what is not installed."""

    def run(package: str, code: str) -> Path:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed, and is not needed for anything else")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / ".hf"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path

    return run


def converted(source: Path, output: Path, **options: object) -> dict[str, torch.Tensor]:
    sdconvert.convert(source, output, max_shard_size=0, **options)  # type: ignore[arg-type]
    return contents(output)


def state(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_transformers(variant: str | None, runs: Runs, tmp_path: Path) -> None:
    runs(
        "transformers",
        _GPT + f"model.save_pretrained('m', max_shard_size='50KB', variant={variant!r})\n"
        "torch.save(model.state_dict(), 'truth.pt')",
    )
    truth = state(tmp_path / "truth.pt")
    del truth["lm_head.weight"]  # transformers ties it by the model's configuration.
    assert same(converted(tmp_path / "m", tmp_path / "o.safetensors"), truth)


@pytest.mark.slow
def test_transformers_loads_our_shards(runs: Runs, tmp_path: Path) -> None:
    runs("transformers", _GPT + "torch.save(model.state_dict(), 'm.pt'); model.config.save_pretrained('out')")
    report = sdconvert.convert(tmp_path / "m.pt", tmp_path / "out", max_shard_size="50KB")
    assert dict(report.aliases) == {"lm_head.weight": "transformer.wte.weight"}
    assert len(report.shards) > 2
    runs(
        "transformers",
        "import torch, transformers\n"
        "model, info = transformers.GPT2LMHeadModel.from_pretrained('out', output_loading_info=True)\n"
        "assert not any(info[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info\n"
        "assert model.lm_head.weight is model.transformer.wte.weight\n"
        "truth = torch.load('m.pt')\n"
        "assert truth.keys() == model.state_dict().keys()\n"
        "assert all(torch.equal(t, truth[n]) for n, t in model.state_dict().items())",
    )


@pytest.mark.slow
def test_a_trainers_output(runs: Runs, tmp_path: Path) -> None:
    runs(
        "accelerate",
        _GPT + "data = [{'input_ids': torch.arange(8), 'labels': torch.arange(8)}] * 8\n"
        "arguments = transformers.TrainingArguments('run', max_steps=2, save_steps=1, report_to=[], use_cpu=True)\n"
        "transformers.Trainer(model, arguments, train_dataset=data).train()\n"
        "torch.save(model.state_dict(), 'truth.pt')",
    )
    with pytest.raises(sdconvert.ChoiceError) as caught:
        sdconvert.open(tmp_path / "run")
    assert [Path(one.key).name for one in caught.value.candidates] == ["checkpoint-1", "checkpoint-2"]
    truth = state(tmp_path / "truth.pt")
    del truth["lm_head.weight"]
    assert same(converted(tmp_path / "run" / "checkpoint-2", tmp_path / "o.safetensors"), truth)
    skipped = sdconvert.convert(tmp_path / "run" / "checkpoint-1", dry_run=True).skipped
    assert {one.name for one in skipped} == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}


@pytest.mark.slow
@pytest.mark.parametrize("safe", [True, False])
def test_the_state_of_accelerate(safe: bool, runs: Runs, tmp_path: Path) -> None:
    runs(
        "accelerate",
        "import torch, accelerate\n"
        "a = accelerate.Accelerator(cpu=True)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "model, optimizer = a.prepare(model, optimizer)\n"
        "a.backward(model(torch.ones(2, 3)).sum()); optimizer.step()\n"
        f"a.save_state('m', safe_serialization={safe}); a.save_model(model, 'shards', max_shard_size='0.05KB')\n"
        "torch.save(model.state_dict(), 'truth.pt')",
    )
    truth = state(tmp_path / "truth.pt")
    assert same(converted(tmp_path / "m", tmp_path / "o.safetensors"), truth)
    assert same(converted(tmp_path / "shards", tmp_path / "p.safetensors"), truth)
    skipped = {one.name for one in sdconvert.convert(tmp_path / "m", dry_run=True).skipped}
    assert skipped == {"optimizer.bin", "random_states_0.pkl"}


@pytest.mark.slow
def test_an_adapter_of_peft(runs: Runs, tmp_path: Path) -> None:
    runs(
        "peft",
        _GPT + "import peft\n"
        "config = peft.LoraConfig(task_type='CAUSAL_LM', target_modules=['c_attn'], fan_in_fan_out=True)\n"
        "model = peft.get_peft_model(model, config); model.save_pretrained('m')\n"
        "torch.save(peft.get_peft_model_state_dict(model), 'truth.pt')",
    )
    assert same(converted(tmp_path / "m", tmp_path / "o.safetensors"), state(tmp_path / "truth.pt"))


@pytest.mark.slow
def test_a_pipeline_of_diffusers(runs: Runs, tmp_path: Path) -> None:
    runs(
        "diffusers",
        "import torch, diffusers as d\n"
        "torch.manual_seed(0)\n"
        "unet = d.UNet2DModel(8, 3, 3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,"
        " down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2)\n"
        "vae = d.VQModel(3, 3, block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16)\n"
        "d.LDMPipeline(vae, unet, d.DDIMScheduler()).save_pretrained('m', max_shard_size='50KB')\n"
        "d.DDPMPipeline(unet, d.DDPMScheduler()).save_pretrained('half', variant='fp16')\n"
        "torch.save(unet.state_dict(), 'truth.pt')",
    )
    truth = state(tmp_path / "truth.pt")
    with pytest.raises(sdconvert.ChoiceError) as caught:
        sdconvert.convert(tmp_path / "m")
    assert [one.key for one in caught.value.candidates] == ["unet", "vqvae"]
    assert same(converted(tmp_path / "m", tmp_path / "o.safetensors", key="unet"), truth)
    assert same(converted(tmp_path / "m" / "unet", tmp_path / "p.safetensors"), truth)
    assert same(converted(tmp_path / "half", tmp_path / "q.safetensors"), truth)


@pytest.mark.slow
def test_a_checkpoint_of_lightning(runs: Runs, tmp_path: Path) -> None:
    runs(
        "lightning",
        "import torch, lightning as L\n"
        "class Model(L.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Linear(3, 2)\n"
        "        self.save_hyperparameters({'lr': 0.1})\n"
        "    def training_step(self, batch, index):\n"
        "        return self.net(batch).sum()\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.Adam(self.parameters())\n"
        "model = Model()\n"
        "trainer = L.Trainer(max_steps=2, accelerator='cpu', default_root_dir='run', logger=False,"
        " enable_progress_bar=False, enable_model_summary=False)\n"
        "trainer.fit(model, torch.utils.data.DataLoader(torch.ones(8, 3), batch_size=2))\n"
        "torch.save(model.state_dict(), 'truth.pt')",
    )
    assert same(converted(tmp_path / "run", tmp_path / "o.safetensors"), state(tmp_path / "truth.pt"))
    report = sdconvert.convert(tmp_path / "run", dry_run=True)
    assert (report.key, report.files) == ("state_dict", ("checkpoints/epoch=0-step=2.ckpt",))
