"""Int8 inference side by side: our engine, eager PyTorch in fp32 and bf16, OpenVINO, ONNX Runtime, torch.ao, PT2E.

All have the same weights and the same inputs; they take turns in one process, round by round, and the median of the
rounds' ratios is what counts. Peers are at their best of what was tried here: OpenVINO and ONNX Runtime get a graph with
one projection for q, k and v, NNCF quantizes everything or what its transformer preset chooses (both are listed), and
each is told the number of threads. `cosine` compares logits with eager fp32.

To leave AMX out for everybody, as on most laptops: ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI PANGU_LAB_ENGINE=avx512
(ONNX Runtime has no such switch; its record says so). Usage, with the peers installed
(`pip install openvino nncf onnxruntime onnx onnxscript torchao`):
`python benchmarks/int8_inference.py --model FOLDER --batches 1 8 32 --out benchmarks/results/int8-inference.json`
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

PAUSE = 0.004  # between two engines: threads of the one before stop spinning


class FusedBert(nn.Module):
    """A BERT classifier with one projection for q, k and v, in operators that every exporter knows."""

    def __init__(self, model):
        super().__init__()
        bert, config = model.bert, model.config
        self.embeddings, self.layers, self.heads = bert.embeddings, nn.ModuleList(), config.num_attention_heads
        for layer in bert.encoder.layer:
            own = layer.attention.self
            qkv = nn.Linear(config.hidden_size, 3 * own.all_head_size)
            with torch.no_grad():
                qkv.weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
                qkv.bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
            parts = [qkv, layer.attention.output.dense, layer.attention.output.LayerNorm]
            parts += [layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm]
            self.layers.append(nn.ModuleList(parts))
        self.pooler, self.classifier = bert.pooler.dense, model.classifier

    def forward(self, input_ids, attention_mask):
        x = self.embeddings(input_ids)
        outside = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for qkv, out, norm1, up, down, norm2 in self.layers:
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, dim=-1))
            weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + outside).softmax(dim=-1)
            x = norm1(x + out((weights @ v).transpose(1, 2).flatten(-2)))
            x = norm2(x + down(nn.functional.gelu(up(x))))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


# --- engines: each takes the model and gives a function of (ids, mask) to logits ---------------------


def eager(model, options):
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def eager_bf16(model, options):
    import copy

    small = copy.deepcopy(model).to(torch.bfloat16)
    return lambda ids, mask: small(input_ids=ids, attention_mask=mask).logits.float()


def ours(model, options):
    from pangu_lab.compression.int8_encoder import with_int8_encoder

    small = with_int8_encoder(model)
    return lambda ids, mask: small(input_ids=ids, attention_mask=mask).logits


def torch_dynamic(model, options):
    import copy

    torch.backends.quantized.engine = "onednn"
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    return lambda ids, mask: small(input_ids=ids, attention_mask=mask).logits


def openvino_int8(model, options, everything=True):
    import nncf
    import openvino

    core, compiled = openvino.Core(), {}
    example = options.calibration[0]
    graph = openvino.convert_model(FusedBert(model).eval(), example_input=example)
    names = [port.get_any_name() for port in graph.inputs]
    data = nncf.Dataset([dict(zip(names, (t.numpy() for t in pair), strict=True)) for pair in options.calibration])
    kind = {} if everything else {"model_type": nncf.ModelType.TRANSFORMER}
    graph = nncf.quantize(graph, data, subset_size=len(options.calibration), **kind)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}

    def call(ids, mask):
        shape = tuple(ids.shape)
        if shape not in compiled:
            fixed = graph.clone()
            fixed.reshape({name: list(shape) for name in names})
            compiled[shape] = core.compile_model(fixed, "CPU", settings).create_infer_request()
        request = compiled[shape]
        request.infer(dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)), share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return call


def openvino_transformer(model, options):
    return openvino_int8(model, options, everything=False)


def onnxruntime_int8(model, options, fuse=True):
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("fp32.onnx", "fused.onnx", "int8.onnx")]
        axes = {name: {0: "texts", 1: "tokens"} for name in ("ids", "mask")}
        torch.onnx.export(
            FusedBert(model).eval(),
            options.calibration[0],
            files[0],
            input_names=["ids", "mask"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        if fuse:
            from onnxruntime.transformers import optimizer

            config = model.config
            fused = optimizer.optimize_model(
                files[0], "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
            )
            print("onnxruntime fused:", {k: v for k, v in fused.get_fused_operator_statistics().items() if v})
            fused.save_model_to_file(files[1])
        unknown = {"DefaultTensorType": 1}  # float, where the fused graph does not say
        quantize_dynamic(files[fuse], files[2], per_channel=True, weight_type=QuantType.QInt8, extra_options=unknown)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(files[2], settings, providers=["CPUExecutionProvider"])
    return lambda ids, mask: torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])


def onnxruntime_plain(model, options):
    return onnxruntime_int8(model, options, fuse=False)


def pt2e_static(model, options):
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torch._inductor import config as inductor
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    inductor.freezing, inductor.cpp_wrapper = True, False
    compiled = {}

    def call(ids, mask):
        shape = tuple(ids.shape)
        if shape not in compiled:
            with torch.no_grad():
                exported = torch.export.export(FusedBert(model).eval(), (ids, mask), strict=False).module()
                quantizer = x86.X86InductorQuantizer()
                quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
                prepared = prepare_pt2e(exported, quantizer)
                for some_ids, some_mask in options.calibration:
                    times = -(-len(ids) // len(some_ids))
                    prepared(
                        some_ids.repeat(times, 1)[: len(ids), : shape[1]],
                        some_mask.repeat(times, 1)[: len(ids), : shape[1]],
                    )
                compiled[shape] = torch.compile(convert_pt2e(prepared))
        with torch.no_grad():
            return compiled[shape](ids, mask)

    return call


ENGINES = {
    "ours": ours,
    "eager fp32": eager,
    "eager bf16": eager_bf16,
    "openvino int8": openvino_int8,
    "openvino int8, transformer preset": openvino_transformer,
    "onnxruntime int8": onnxruntime_int8,
    "onnxruntime int8, plain graph": onnxruntime_plain,
    "torch.ao dynamic": torch_dynamic,
    "pt2e static, compiled": pt2e_static,
}


# --- models and inputs ------------------------------------------------------------------------------


def load_model(name):
    """A classifier from a folder, or one with random weights: bert-base, or tinybert (4 layers of 312)."""
    from transformers import BertConfig, BertForSequenceClassification

    shapes = {
        "bert-base": {},
        "tinybert": {"hidden_size": 312, "num_hidden_layers": 4, "intermediate_size": 1200},
    }
    torch.manual_seed(0)
    if name in shapes:
        return BertForSequenceClassification(BertConfig(**shapes[name], attn_implementation="sdpa")).eval()
    return BertForSequenceClassification.from_pretrained(name, attn_implementation="sdpa").eval()


def random_batch(texts, tokens):
    ids = torch.randint(1000, 30_000, (texts, tokens), generator=torch.Generator().manual_seed(texts * tokens))
    return ids, torch.ones_like(ids)


def real_texts(options, data, count):
    """Token ids of real texts from the mirror, in their own order."""
    from transformers import AutoTokenizer

    from pangu_lab.config import load_config
    from pangu_lab.hub import load_dataset

    rows, source = load_dataset(data, load_config(paths={"mirror": options.mirror}))
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model)
    test = rows["test"]
    step = max(1, len(test["text"]) // count)
    texts, labels = list(test["text"])[::step][:count], list(test["label"])[::step][:count]
    return tokenizer, texts, labels, f"{data} ({source.kind})"


def padded(tokenizer, texts, tokens=None):
    batch = tokenizer(
        texts, truncation=True, max_length=tokens or 512, padding="max_length" if tokens else True, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


def cosine_to(logits, reference):
    """Over the logits of all texts as one vector: of a single text's two logits the cosine is little more than a sign."""
    return nn.functional.cosine_similarity(logits.float().flatten(), reference.flatten(), dim=0).item()


def measure(functions, batch, rounds, seconds):
    """Milliseconds of every round by engine; who goes first changes every round."""
    times, order = {name: [] for name in functions}, list(functions)
    with torch.inference_mode():
        reference = functions["eager fp32"](*batch).clone()
        cosine = {}
        for name, function in functions.items():
            for _ in range(3):
                logits = function(*batch)
            cosine[name] = cosine_to(logits, reference)
        began = time.perf_counter()
        while len(times[order[0]]) < rounds or time.perf_counter() - began < seconds:
            order = order[1:] + order[:1]
            for name in order:
                time.sleep(PAUSE)
                functions[name](*batch)  # once to have the engine's weights and threads at hand again
                started = time.perf_counter()
                functions[name](*batch)
                times[name].append(1000 * (time.perf_counter() - started))
    return times, cosine


def summary(times, cosine):
    lines = {}
    for name, taken in times.items():
        ratios = [theirs / own for theirs, own in zip(taken, times["ours"], strict=True)]
        quartiles = statistics.quantiles(taken, n=4)
        lines[name] = {
            "median_ms": round(statistics.median(taken), 3),
            "quartiles_ms": [round(quartiles[0], 3), round(quartiles[2], 3)],
            "ours_is_times_faster": round(statistics.median(ratios), 3),
            "cosine": round(cosine[name], 5),
        }
    return lines


def accuracy(functions, options):
    """Accuracy on real reviews, agreement and cosine with eager fp32, of every engine."""
    tokenizer, texts, labels, source = real_texts(options, "stanfordnlp/imdb", options.reviews)
    logits = {name: [] for name in functions}
    with torch.inference_mode():
        for i in range(0, len(texts), 20):
            batch = padded(tokenizer, texts[i : i + 20], 192)
            for name, function in functions.items():
                logits[name].append(function(*batch).float().clone())
    logits = {name: torch.cat(parts) for name, parts in logits.items()}
    gold, chosen = torch.tensor(labels), logits["eager fp32"].argmax(1)
    return {"data": source, "reviews": len(texts), "tokens": 192} | {
        name: {
            "accuracy": round((values.argmax(1) == gold).float().mean().item(), 4),
            "agreement": round((values.argmax(1) == chosen).float().mean().item(), 4),
            "cosine": round(cosine_to(values, logits["eager fp32"]), 5),
        }
        for name, values in logits.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a classifier's folder, bert-base or tinybert (random weights)")
    parser.add_argument("--tokenizer", help="a folder; the model's own if not given")
    parser.add_argument("--engines", nargs="*", default=[name for name in ENGINES if "pt2e" not in name])
    parser.add_argument("--shapes", nargs="*", default=["1x128", "8x128", "32x128"], help="TEXTSxTOKENS, or tweets")
    parser.add_argument("--reviews", type=int, default=0, help="measure accuracy on so many IMDB reviews")
    parser.add_argument("--mirror", help="folder of data sets")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)

    import importlib.metadata

    from pangu_lab.compression.engine import engine_path
    from pangu_lab.files import atomic_write
    from pangu_lab.results import hardware, versions

    model = load_model(options.model)
    if options.mirror and "bert" not in options.model:
        tokenizer, texts, _, _ = real_texts(options, "stanfordnlp/imdb", 64)
        options.calibration = [padded(tokenizer, texts[i : i + 8], 128) for i in range(0, 64, 8)]
    else:
        options.calibration = [random_batch(8, 128)]
    functions, builds = {}, {}
    for name in options.engines:
        started = time.perf_counter()
        try:
            functions[name] = ENGINES[name](model, options)
        except Exception as error:  # a peer that is not installed, or does not take this model: the others go on
            print(f"{name}: left out, {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        builds[name] = round(time.perf_counter() - started, 2)
    record = {"model": Path(options.model).name, "threads": options.threads, "engine": engine_path(), "shapes": {}}
    for shape in options.shapes:
        if shape == "tweets":
            tokenizer, texts, _, source = real_texts(options, "cardiffnlp/tweet_eval", 32)
            batch = padded(tokenizer, texts)
        else:
            batch, source = random_batch(*map(int, shape.split("x"))), "random tokens"
        times, cosine = measure(functions, batch, options.rounds, options.seconds)
        record["shapes"][shape] = {
            "data": source,
            "tokens": [int(batch[1].sum()), batch[1].numel()],
            "rounds": len(times["ours"]),
            "engines": summary(times, cosine),
            "times_ms": {name: [round(t, 3) for t in taken] for name, taken in times.items()},
        }
        print(shape, json.dumps(record["shapes"][shape]["engines"], indent=1), flush=True)
    if options.reviews:
        record["accuracy"] = accuracy(functions, options)
        print(json.dumps(record["accuracy"], indent=1))
    peers = {}
    for name in ("openvino", "nncf", "onnxruntime", "torchao"):
        try:
            peers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    record |= {
        "build_seconds": builds,
        "isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "versions": versions() | peers,
        "hardware": hardware(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if options.out:
        atomic_write(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
