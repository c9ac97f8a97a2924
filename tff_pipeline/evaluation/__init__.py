"""Says how good a trained model is on clients that it was not trained on."""
