"""The experiments that come with jaxvit, one file each: `jaxvit train --config=digits:cct`."""
