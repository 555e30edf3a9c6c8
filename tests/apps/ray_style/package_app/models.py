from ray import serve


@serve.deployment
class Summarizer:
    def __init__(self, max_words: int = 3):
        self.max_words = max_words

    def summarize(self, text: str) -> str:
        return " ".join(text.split()[: self.max_words])


@serve.deployment
class Translator:
    def __init__(self, language: str):
        self.language = language

    def reconfigure(self, config: dict):
        self.language = config.get("language", self.language)

    def translate(self, text: str) -> str:
        return f"{self.language}: {text.upper()}"
