"""Where orders run, and who proposes: the only layer that knows Ray and Optuna."""
