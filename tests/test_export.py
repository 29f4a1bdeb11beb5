"""Export: the same outputs in other runtimes, on shapes that were not traced; int8 stays int8; mistakes are told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForQuestionAnswering
from transformers import BertForSequenceClassification as BertClassifier
from typer.testing import CliRunner

from pangu_lab.cli import app
from pangu_lab.compression import export as exporting
from pangu_lab.compression.export import ExportError, OuterInt8Linear, export, onnx_runner, torch_runner
from pangu_lab.compression.quantization import Int8Linear, quantize, save_quantized
from pangu_lab.compression.tasks import load_compressed, save_compressed
from pangu_lab.data.batches import collate
from pangu_lab.model import PanguConfig, PanguForCausalLM, PanguForSequenceClassification
from pangu_lab.tasks.classification import Classifier

SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = SHAPE | {"num_hidden_layers": 1, "max_position_embeddings": 48}


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def lively(kind, config):
    """A random model whose outputs differ from text to text."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(6 if "classifier" in name or "qa_outputs" in name else 3)
    return model


def batch(rows, tokens, words=300, types=True):
    """Random tokens, every row but the last padded."""
    generator = torch.Generator().manual_seed(rows * tokens)
    ids = torch.randint(5, words, (rows, tokens), generator=generator)
    lengths = torch.linspace(max(1, tokens // 3), tokens, rows).round().long() if rows > 1 else torch.tensor([tokens])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return inputs | ({"token_type_ids": ((torch.arange(tokens) >= 3) * mask).long()} if types else {})


def outputs_of(model, inputs, names):
    with torch.no_grad():
        found = model(**inputs)
    return [found[name].numpy() for name in names]


@pytest.mark.parametrize("kind", ["bert-reader", "pangu-classifier"])
def test_a_float_model_says_the_same_on_any_shape(kind, runtime, tmp_path):
    if kind == "bert-reader":
        model = lively(BertForQuestionAnswering, BertConfig(**SMALL))
    else:
        config = PanguConfig(**SMALL, norm_position="pre", position_offset=2, type_vocab_size=0, num_labels=3)
        model = lively(PanguForSequenceClassification, config)
    model.save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "graph.onnx")
    assert done.difference < 1e-4 and done.agreement == 1.0 and done.bytes == done.file.stat().st_size
    assert done.max_tokens == (48 if kind == "bert-reader" else 46)
    run = onnx_runner(str(done.file))
    for rows, tokens in ((1, 1), (1, done.max_tokens), (7, 19)):
        inputs = batch(rows, tokens, types="token_type_ids" in done.inputs)
        expected = outputs_of(model, inputs, done.outputs)
        assert max(np.abs(e).max() for e in expected) > 0.1  # there is something to be equal to
        for mine, theirs in zip(expected, run(inputs), strict=True):
            real = inputs["attention_mask"].numpy().astype(bool) if kind == "bert-reader" else slice(None)
            assert np.abs(mine - theirs)[real].max() < 1e-4
    graph = runtime.load(str(done.file))
    runtime.checker.check_model(graph)
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", exporting.OPSET)]
    axes = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    assert axes == {name: ["batch", "tokens"] for name in done.inputs}
    assert str(ROOT).encode() not in done.file.read_bytes(), "the file names this machine's folders"


@pytest.fixture
def small_classifier(tmp_path, tiny_encoder):
    """A quantised classifier's folder, with the course's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    config = BertConfig(**SMALL | {"vocab_size": len(tokenizer)}, id2label={0: "no", 1: "yes"})
    model = quantize(lively(BertClassifier, config), "int8-dynamic")
    save_compressed(Classifier(model, tokenizer, ("no", "yes"), 48), tmp_path / "int8")
    return tmp_path / "int8"


def test_an_int8_model_stays_int8_and_predicts_the_same_as_on_the_engine(runtime, small_classifier, tmp_path):
    done = export(small_classifier, tmp_path / "out")  # a folder
    assert done.file == tmp_path / "out" / "model.onnx" and done.quantized
    assert set(AutoTokenizer.from_pretrained(tmp_path / "out").model_input_names) == set(done.inputs)
    proto = runtime.load(str(done.file))
    weights = [
        i for i in proto.graph.initializer if i.data_type in (runtime.TensorProto.INT8, runtime.TensorProto.UINT8)
    ]
    count = sum(int(np.prod(i.dims)) for i in weights)
    own = exporting.load_plain(small_classifier)
    assert count >= sum(b.numel() for b in own.buffers() if b.dtype == torch.int8)
    assert done.bytes < 1.1 * (small_classifier / "quantized.safetensors").stat().st_size + 60_000
    assert sum(node.op_type == "MatMulInteger" for node in proto.graph.node) == 8
    assert json.loads({p.key: p.value for p in proto.metadata_props}["labels"]) == ["no", "yes"]
    classifier = load_compressed(small_classifier)  # on the compiled engine, where there is one
    ids = classifier.tokenizer([f"{w} film {'x ' * (i % 7)}" for i, w in enumerate("aeiouklmnpqr")])["input_ids"]
    inputs = collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], 0)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    (mine,) = outputs_of(own, inputs, ["logits"])
    (fast,) = outputs_of(classifier.model, inputs, ["logits"])
    (theirs,) = onnx_runner(str(done.file))(inputs)
    assert np.median(np.abs(mine - theirs)) < 1e-4 * np.abs(mine).max(), "most logits are equal, no rounding flipped"
    decided = np.abs(mine[:, 0] - mine[:, 1]) > 0.02 * np.abs(mine).max()
    assert decided.sum() > 6
    for other in (fast, theirs):
        assert (other.argmax(axis=1) == mine.argmax(axis=1))[decided].all()


@pytest.mark.parametrize("vnni", [False, True])
def test_an_int8_layer_is_bit_exact_in_onnx_runtime(vnni, runtime, tmp_path):
    generator = torch.Generator().manual_seed(0)
    # Beside unsigned activations, weights of at most 63 cannot saturate pairs of products, on any processor.
    most = 63 if vnni else 127
    weight = torch.randint(-most, most + 1, (37, 21), dtype=torch.int8, generator=generator)
    scale, bias = torch.rand(21, generator=generator), torch.randn(21, generator=generator)
    layer = OuterInt8Linear(weight, scale, bias).eval()
    x = torch.randn(11, 37, generator=generator)
    x[3], x[4] = 0, torch.where(x[4] > 0, 1.0, -1.0)  # a row of zeros, one where all are at the ends
    program = torch.onnx.export(
        layer,
        (x[:3],),
        dynamic_shapes=({0: torch.export.Dim("rows")},),
        dynamo=True,
        opset_version=exporting.OPSET,
        custom_translation_table={torch.ops.aten._int_mm.default: exporting._integer_product(vnni)},
        verbose=False,
    )
    data = program.model_proto.SerializeToString()
    (found,) = onnx_runner(data)({program.model_proto.graph.input[0].name: x})
    plain = Int8Linear(layer.weight, layer.weight_scale, layer.bias)
    assert np.array_equal(found, plain(x).numpy()) and torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("recipe", ["int8-smooth-static", "int4-weights"])
def test_every_kind_of_layer_is_exported(recipe, runtime, tmp_path):
    model = quantize(lively(BertClassifier, BertConfig(**SMALL)), recipe, [batch(6, 20)])
    save_quantized(model, tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "graph.onnx")
    inputs = batch(9, 31)
    (mine,), (theirs,) = outputs_of(model, inputs, ["logits"]), onnx_runner(str(done.file))(inputs)
    assert np.median(np.abs(mine - theirs)) < 1e-4 * np.abs(mine).max() and mine.std() > 0.1
    assert (
        done.bytes < 0.75 * 4 * sum(b.numel() for b in model.buffers() if b.dtype in (torch.int8, torch.uint8)) + 90_000
    )


def test_torch_export_of_float_and_int8(small_classifier, tmp_path):
    reader = lively(BertForQuestionAnswering, BertConfig(**SMALL))
    reader.save_pretrained(tmp_path / "reader")
    for folder, model in ((tmp_path / "reader", reader), (small_classifier, exporting.load_plain(small_classifier))):
        done = export(folder, tmp_path / "graph.pt2")
        run = torch_runner(done.file.read_bytes())
        for rows, tokens in ((1, 1), (3, 48), (8, 5)):
            inputs = batch(rows, tokens)
            for mine, theirs in zip(outputs_of(model, inputs, done.outputs), run(inputs), strict=True):
                assert np.allclose(mine, theirs, atol=1e-5)
    kept = {"pangu_lab.json": ""}
    torch.export.load(done.file, extra_files=kept)
    assert json.loads(kept["pangu_lab.json"])["labels"] == ["no", "yes"]


def test_a_graph_that_says_something_else_is_not_written(small_classifier, tmp_path, monkeypatch):
    right = exporting.torch_bytes

    def wrong(wrapped, *rest):
        with torch.no_grad():
            wrapped.model.classifier.weight_scale.mul_(1.2)
            data = right(wrapped, *rest)
            wrapped.model.classifier.weight_scale.div_(1.2)
        return data

    monkeypatch.setattr(exporting, "torch_bytes", wrong)
    with pytest.raises(ExportError, match=r"outputs differ from the model's by up to .* nothing was written"):
        export(small_classifier, tmp_path / "graph.pt2")
    assert not (tmp_path / "graph.pt2").exists()


def test_what_cannot_be_exported_is_told(tmp_path, monkeypatch):
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path / "words")
    PanguForCausalLM(PanguConfig(**SMALL, architecture="decoder")).save_pretrained(tmp_path / "decoder")
    BertClassifier(BertConfig(**SMALL)).save_pretrained(tmp_path / "good")
    save_quantized(quantize(BertClassifier(BertConfig(**SMALL)), "int8-dynamic"), tmp_path / "damaged")
    (tmp_path / "damaged" / "quantized.safetensors").write_bytes(b"half")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((tmp_path / "good" / "config.json").read_text())
    for folder, to, format, told in (
        ("nothing", "a.pt2", None, "holds no model"),
        ("words", "a.pt2", None, "holds BertForMaskedLM; exported are encoders with a head"),
        ("decoder", "a.pt2", None, "holds PanguForCausalLM; exported are"),
        ("damaged", "a.pt2", None, "is damaged"),
        ("bare", "a.pt2", None, "cannot be loaded"),
        ("good", "a.bin", None, r"ends in '.bin'; name the file ….onnx or ….pt2"),
        ("good", "a.pt2", "onnx", r"ends in '.pt2'; name the file ….onnx"),
        ("good", "a", "tflite", "--format is 'tflite'; it must be one of onnx, torch"),
    ):
        with pytest.raises(ExportError, match=told):
            export(tmp_path / folder, tmp_path / to, format)
    found = exporting.importlib.util.find_spec
    without = SimpleNamespace(find_spec=lambda name: None if name == "onnxscript" else found(name))
    monkeypatch.setattr(exporting.importlib, "util", without)
    with pytest.raises(ExportError, match=r"(onnxscript|onnx) is not installed; run pip install 'pangu-lab\[export\]'"):
        export(tmp_path / "good", tmp_path / "a.onnx")


def test_the_command(small_classifier, tmp_path):
    shown = CliRunner().invoke(app, ["export", str(small_classifier), "--to", str(tmp_path / "a.pt2")])
    assert shown.exit_code == 0, shown.output
    assert "any batch, up to 48 tokens" in shown.output and "100.0% equal predictions" in shown.output
