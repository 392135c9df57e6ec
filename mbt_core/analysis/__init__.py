"""What is made of a trained model: reports, explanations, and what it costs."""
