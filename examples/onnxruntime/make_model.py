"""Makes `iris.onnx`: logistic regression over the iris flowers. Needs scikit-learn and onnx; serving it needs neither."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def main() -> None:
    """Train, then write the file beside this one."""
    flowers = load_iris()
    trained = LogisticRegression(max_iter=1000).fit(flowers.data, flowers.target)
    weights = [
        numpy_helper.from_array(trained.coef_.T.astype(np.float32), "coefficients"),
        numpy_helper.from_array(trained.intercept_.astype(np.float32), "intercept"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["flowers", "coefficients", "intercept"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "iris",
        [helper.make_tensor_value_info("flowers", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(Path(__file__).with_name("iris.onnx")))


if __name__ == "__main__":
    main()
