"""An OpenAI-compatible server for a pipeline (`cof serve`): docs/serving.md."""
