"""Documents to packed token shards. spark-submit jobs/shard.py --target prod"""

from tessera import jobs

if __name__ == "__main__":
    jobs.shard()
