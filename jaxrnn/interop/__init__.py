"""Weights to and from other libraries."""

from .onnx import to_onnx as to_onnx
