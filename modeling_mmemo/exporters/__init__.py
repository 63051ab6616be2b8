"""A trained model as a small and fast one: ONNX, int8, and what runs them."""
