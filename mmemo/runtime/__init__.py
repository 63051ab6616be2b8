"""Exported models: graphs, processors and the predictor over ONNX Runtime."""
