obj.spec.schedule.suspend = false
return obj
