-- How much of each limit is used now, and when it allows the next call: { used, time, ... } in the order of the limits.

local usage = {}
for number, limit in ipairs(spec.limits) do
  local busiest
  if limit.per_tenant then
    -- The busiest of those who called last: more would be read for nobody.
    for _, tenant in ipairs(redis.call('ZREVRANGE', key_of('tenants/' .. limit.name, ''), 0, 99)) do
      local c = count_of(number, tenant, 1)
      if not busiest or c.shape.used(c, now) >= busiest.shape.used(busiest, now) then busiest = c end
    end
  end
  local c = busiest or count_of(number, '', 1)
  usage[#usage + 1], usage[#usage + 2] = c.shape.used(c, now), c.shape.earliest(c, now)
end
return { 'open', told, epoch, gate, ahead, usage, {}, {} }
