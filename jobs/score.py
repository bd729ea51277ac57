"""Answers the rows of a table. spark-submit jobs/score.py --target prod --source TABLE --prompt TEMPLATE"""

from tessera import jobs

if __name__ == "__main__":
    jobs.score()
