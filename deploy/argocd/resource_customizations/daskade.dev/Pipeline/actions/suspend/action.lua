obj.spec.schedule.suspend = true
return obj
