from ray import serve

from .prices import price


@serve.deployment(user_config={"factor": 2}, ray_actor_options={"num_cpus": 0.1})
class Model:
    def __init__(self, name):
        self.name = name
        self.factor = 1

    def reconfigure(self, config):
        self.factor = config["factor"]

    async def predict(self, amount):
        return price(self.name) * self.factor * amount
