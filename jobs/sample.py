"""Writes the sample table. spark-submit jobs/sample.py --target dev"""

from tessera import jobs

if __name__ == "__main__":
    jobs.sample()
