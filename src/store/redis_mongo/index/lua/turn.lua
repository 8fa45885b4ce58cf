-- The tenants whose turn it is to be read from MongoDB, as many for each stream as it has room for. The caller has five seconds to read them.
-- ARGV: now, streams, depth.
-- Gives: epoch, then for each: stream, tenant, how many to add, how many ids are in the stream already.
even_when_full()
local now, streams, depth = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local name, is_open = epoch()
if not is_open then return {name or ''} end
local MOST, PATIENCE = 16, 5000
local answer = {name}
for stream = 0, streams - 1 do
  wake(stream, now)
  local left, tenants = waiting(stream), {}
  local room = depth - left
  while is_low(left, depth) and #tenants < math.min(MOST, room) do
    local next_one = redis.call('ZPOPMIN', key_of(stream, 'due'))[1]
    if not next_one then break end
    local until_ms = rests(stream, next_one, now)
    if until_ms then
      sleep(stream, next_one, number(until_ms))
    else
      redis.call('ZADD', key_of(stream, 'reading'), number(now + PATIENCE), next_one)
      tenants[#tenants + 1] = next_one
    end
  end
  for _, tenant in ipairs(tenants) do
    answer[#answer + 1] = tostring(stream)
    answer[#answer + 1] = tenant
    answer[#answer + 1] = tostring(math.ceil(room / #tenants))
    answer[#answer + 1] = tostring(redis.call('XLEN', key_of(stream, 'jobs')))
  end
end
return answer
