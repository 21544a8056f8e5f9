"""Job descriptions: JDL, submit files, ClassAds → `Job`."""
