"""How good a model is, on speakers it has not heard."""
