"""The whole line in one process. spark-submit jobs/line.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.line()
