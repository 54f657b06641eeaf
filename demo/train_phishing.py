"""Makes demo/models/phishing: is a web page a phishing page?

    pip install 'pelton[convert]' pandas && python demo/train_phishing.py

The data is phishing.csv.gz of the package river (BSD-3-Clause): 1,250 web pages described by 9 signs, each 0, 0.5 or
1 or a truth value (UCI, Website Phishing). A quarter of the pages is held out, and its figures go into the package.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

import lightgbm
import msgspec
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

from pelton.importers import Options
from pelton.importers.convert import package
from pelton.importers.public_package import fetch
from pelton.packages import Package, save
from pelton.packages.preprocess import Column, Table
from pelton.registry import Registry

HERE = Path(__file__).resolve().parent
DATA = (
    "pypi:river==0.26.1/river/datasets/phishing.csv.gz"
    "#sha256=d8a6d44bd9672e852b8a53ad2c64229f81972158a77d981073a98b17c27af7a9"
)
# The data codes a sign as 0, 0.5 or 1 without saying which is bad; in most, pages with 1 are the harmless ones.
ABOUT = {
    "empty_server_form_handler": "where the forms of the page are sent, coded 0, 0.5 or 1",
    "popup_window": "pop-up windows, coded 0, 0.5 or 1",
    "https": "the certificate, coded 0, 0.5 or 1",
    "request_from_other_domain": "pictures and sounds of other domains, coded 0, 0.5 or 1",
    "anchor_from_other_domain": "links to other domains, coded 0, 0.5 or 1",
    "is_popular": "how much the page is visited, coded 0, 0.5 or 1",
    "long_url": "the length of the address, coded 0, 0.5 or 1",
    "age_of_domain": "the age of the domain, coded 0 or 1",
    "ip_in_url": "an IP address in place of a name, coded 0 or 1",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        with gzip.open(fetch(DATA, Path(temporary))) as file:
            frame = pd.read_csv(file)
        labels = np.where(frame.pop("is_phishing") == 1, "phishing", "legitimate")
        train, test, train_labels, test_labels = train_test_split(
            frame, labels, test_size=0.25, random_state=0, stratify=labels
        )
        model = lightgbm.LGBMClassifier(
            n_estimators=100,
            num_leaves=15,
            learning_rate=0.06,
            random_state=0,
            n_jobs=1,
            deterministic=True,
            verbose=-1,
        ).fit(train, train_labels)
        accuracy = accuracy_score(test_labels, model.predict(test))
        auc = roc_auc_score(test_labels == "phishing", model.predict_proba(test)[:, 1])
        print(f"held-out accuracy {accuracy:.3f}, AUC {auc:.3f} ({len(test)} pages)")
        shown = test.iloc[np.argsort(test_labels != "phishing", kind="stable")]  # the example is a phishing page
        added = package(model, shown, Registry(Path(temporary) / "home"), Options(name="phishing", p99_ms=20))
        ship(
            added,
            f"Is a web page a phishing page? On {len(test)} held-out pages: accuracy {accuracy:.3f}, AUC {auc:.3f}.",
        )


def ship(added: Package, description: str) -> None:
    folder = HERE / "models" / "phishing"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(added.folder, folder, copy_function=shutil.copyfile)
    (table,) = added.manifest.preprocess
    assert isinstance(table, Table)
    manifest = msgspec.structs.replace(
        added.manifest,
        description=description,
        source="LightGBM on phishing.csv.gz of river 0.26.1, made by demo/train_phishing.py",
        license="Apache-2.0 (data: BSD-3-Clause)",
        preprocess=(Table(tuple(map(describe, table.columns)), fills=table.fills),),
    )
    save(manifest, folder)


def describe(column: Column) -> Column:
    return msgspec.structs.replace(column, minimum=0.0, maximum=1.0, description=ABOUT[column.name])


if __name__ == "__main__":
    main()
