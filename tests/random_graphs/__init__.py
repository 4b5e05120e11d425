"""Random well-typed ONNX graphs in which the patterns of every exact rule are planted, and what must hold for them."""
