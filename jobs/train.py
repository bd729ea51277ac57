"""Shards to a trained checkpoint. spark-submit jobs/train.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.train()
