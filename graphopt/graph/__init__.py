"""What onnx_ir lacks: structure, shapes, layers, cost, edits, regions."""
