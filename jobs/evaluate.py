"""Scores the checkpoint and decides at the gate. spark-submit jobs/evaluate.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.evaluate()
