"""Create a bucket unless it exists: `python make_bucket.py NAME`.

AWS_ENDPOINT_URL and the credentials come from the environment.
"""

import sys

import botocore.session
from botocore.exceptions import ClientError

bucket = sys.argv[1]
s3 = botocore.session.get_session().create_client("s3")
try:
    s3.head_bucket(Bucket=bucket)
except ClientError as error:
    if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
        raise
    s3.create_bucket(Bucket=bucket)
print(f"bucket {bucket} at {s3.meta.endpoint_url}")
