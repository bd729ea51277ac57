"""Delta tables to governed documents. spark-submit jobs/prepare.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.prepare()
