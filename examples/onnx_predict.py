"""Classify a cloud with an exported model, without pc-ewa: numpy and onnxruntime are enough.

pc-ewa export runs/quickstart -o furniture.onnx
python examples/onnx_predict.py furniture.onnx examples/chair.xyz    # lines of x y z, or an array in .npy
"""

import json
import os
import sys

import numpy as np
import onnxruntime

if len(sys.argv) != 3 or not sys.argv[2].endswith((".npy", ".xyz", ".txt")):
    sys.exit(f"{__doc__}\nOther files are not read here: write the points of yours as lines of x y z, or as .npy.")
model, file = sys.argv[1:]
for name in (model, file):
    if not os.path.isfile(name):
        sys.exit(f"{name} does not exist")
session = onnxruntime.InferenceSession(model)
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
wanted, stored = (about["preprocessing"].get(key) for key in ("num_points", "stored_points"))
if about["task"] != "classify":
    sys.exit(f"{model} is made to {about['task']}; give a classifier")

try:
    points = (np.load(file) if file.endswith(".npy") else np.loadtxt(file, ndmin=2))[:, :3].astype(np.float64)
except (ValueError, IndexError) as error:
    sys.exit(f"{file} is not lines of x y z: {error}")
if len(np.unique(points, axis=0)) < about["min_points"]:
    sys.exit(f"{file} has fewer than {about['min_points']} distinct points, too few for this model")
if stored and len(points) != stored:  # as dense as the training data was; chance decides which
    points = points[np.random.default_rng(0).choice(len(points), stored, replace=len(points) < stored)]
if about["preprocessing"]["normalize"]:  # into the unit sphere
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max() or 1.0
points = points.astype(np.float32)
if len(points) > wanted:  # the farthest points, one by one
    chosen, nearest = [0], np.full(len(points), np.inf, np.float32)
    while len(chosen) < wanted:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        chosen.append(int(nearest.argmax()))
    points = points[chosen]

(logits,) = session.run(None, {"points": points[None]})[0]
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
for best in probabilities.argsort()[::-1][:3]:
    print(f"{about['class_names'][best]:<12} {probabilities[best]:6.1%}")
