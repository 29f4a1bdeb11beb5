"""What many tests share: a configuration in a scratch folder, a tiny encoder, a made-up mirror, the real one if given."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PANGU_LAB_NO_PROGRESS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for name in ("PANGU_LAB_MIRROR", "PANGU_LAB_CONFIG", "PANGU_LAB_MODE"):
    os.environ.pop(name, None)

# How long an example takes says nothing on a machine that is busy.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path):
    from pangu_lab.config import load_config

    paths = {name: str(tmp_path / name) for name in ("data", "models", "logs", "runs")}
    return load_config(None, mode="smoke", paths=paths, train={"precision": "fp32"})


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A folder with a BERT of two layers and 32 dimensions, randomly initialized, under the real tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from pangu_lab.hub import bundled_weights

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(bundled_weights())
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def made_up_mirror(tmp_path):
    """A mirror with twenty invented reviews in each split of stanfordnlp/imdb."""
    import datasets

    mirror = tmp_path / "mirror"
    folder = mirror / "stanfordnlp" / "imdb" / "plain_text"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {
                "text": f"{split} {number}: {'lovely' if number % 2 else 'dreadful'} from start to end",
                "label": number % 2,
            }
            for number in range(20)
        ]
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return mirror


@pytest.fixture(scope="session")
def real_mirror():
    folder = os.environ.get("PANGU_LAB_TEST_MIRROR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no mirror of the real data sets; set PANGU_LAB_TEST_MIRROR to one")
    return Path(folder)
