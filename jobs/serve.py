"""Registers the model and moves its aliases. spark-submit jobs/serve.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.serve()
