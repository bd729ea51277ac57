"""The map of all runs. spark-submit jobs/explore.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.explore()
